"""Layers: equalised linear and convolution kernels, the convolution kinds, styled (modulated) convolution."""
