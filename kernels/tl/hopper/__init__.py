"""Dense convolution on Hopper, in Gluon: TMA, wgmma, specialised warps. For Triton 3.8 and later, or from a pack."""
