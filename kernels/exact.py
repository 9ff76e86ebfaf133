"""Sums that do not depend on their order.

Floating-point addition is not associative, so a sum over ranks would change in its last bits with the number of
ranks. If every term is first rounded to a multiple of one power of two (the quantum), chosen so that no partial sum
exceeds 2^53 quanta, each addition is exact in float64, and any order, any tree and any number of ranks give the same
bits.
"""
import numpy as np

MANTISSA_BITS = 52


def quantum(bound):
    """float64[...]: the power of two to which terms are rounded when no partial sum exceeds `bound` in size."""
    bound = np.maximum(np.asarray(bound, dtype=np.float64), np.finfo(np.float64).tiny * 2.0**60)
    return np.exp2(np.ceil(np.log2(bound)) - MANTISSA_BITS)


def to_quanta(terms, quanta):
    """float64[...]: `terms` rounded to the nearest multiple of `quanta` (the product with a power of two is exact)."""
    return np.rint(np.asarray(terms, dtype=np.float64) / quanta) * quanta
