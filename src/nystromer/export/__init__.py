"""Encoders for runtimes without torch: ONNX Runtime and OpenVINO; and packages of AOTInductor."""

from nystromer.export.embedder import Embedder
from nystromer.export.encoder import Exported, export_encoder
from nystromer.export.graphs import export_onnx

__all__ = ["Embedder", "Exported", "export_encoder", "export_onnx"]
