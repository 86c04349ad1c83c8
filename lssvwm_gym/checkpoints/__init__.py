"""Folders of weights: read, checked, packaged with a model card, quantised, and the Hugging Face Hub."""
