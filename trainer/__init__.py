"""What runs beside each GPU: model, data and training loop of one rank.

Shapes in docstrings use these symbols:

W  ranks of the run
A  micro-batches of one optimizer step on a rank (accumulation)
B  samples of one micro-batch on a rank, so that a step takes W x A x B samples
T  tokens: of a sample, or of the longest sample of a micro-batch
P  image patches of a sample or micro-batch; D values each
N  images of a sample or micro-batch
"""
