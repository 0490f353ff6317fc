"""The rule table: a row per primitive, both modes in the row. Importing fills the registry."""

from revgrad.rules import elementwise, linear, nn, products, reduce

__all__ = ["elementwise", "linear", "nn", "products", "reduce"]
