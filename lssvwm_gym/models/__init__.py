"""The world model and its parts. Shapes are written with one alphabet everywhere.

B rows (environments, clips) · T frames · N tokens a frame · C latent channels · D model width
H heads · P head width · S state size of a scan · L sequence length of a scan · W window in frames
"""
