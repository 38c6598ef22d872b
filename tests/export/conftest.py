"""Commands run as in the tests of recipes."""

from recipes.conftest import run

__all__ = ["run"]
