"""The speed of a dream, of training and of kernels, and of what they are to be compared with: `lssvwm-gym benchmark`."""
