"""Evaluation of a trained encoder on labelled images or captions, and of word vectors; one file for each protocol.

knn, linear_probe, retrieval, words  a function on tensors, and the protocol that contrast-evaluate runs
geometry, perplexity                 measures that training logs
encoder, features                    an encoder from a checkpoint; its features of a data set
report                               all metrics at the end of a run on images, and their table
"""
