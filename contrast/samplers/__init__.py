"""Noise over N classes: draws, their log probabilities, and the binary tree that takes the place of draws."""

from contrast.samplers.alias import Alias, Unigram, alias_table
from contrast.samplers.contract import Sampler
from contrast.samplers.huffman import HuffmanTree, from_parents, huffman
from contrast.samplers.poisson import Poisson, inclusion
from contrast.samplers.uniform import LogUniform, Uniform

__all__ = [
    "Alias",
    "HuffmanTree",
    "LogUniform",
    "Poisson",
    "Sampler",
    "Uniform",
    "Unigram",
    "alias_table",
    "from_parents",
    "huffman",
    "inclusion",
]
