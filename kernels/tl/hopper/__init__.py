"""Dense convolution on Hopper, in Gluon: TMA, wgmma, specialised warps. From Triton 3.8 on; older ones launch it from packs."""
