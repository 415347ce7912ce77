"""Uses of a trained encoder outside its run.

load    `contrast.load`: the encoder of a run, a checkpoint or an exported folder; word vectors
words   word vectors as an object
export  the encoder as a file for other programs: safetensors, torch.export, ONNX
hub     the encoder as a folder for the Hugging Face Hub, with a model card
parts   vectors of many images, written in parts; `table` writes them to one file
"""
