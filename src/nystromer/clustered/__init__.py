"""Clustered attention: an operation of its own with Nyström's three tables and no inverse.

The tables are joined for each pair of clusters of queries and of keys. docs/clustered-attention.md
says what it is for.
"""
