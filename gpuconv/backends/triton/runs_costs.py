from collections.abc import Iterator
from .runs_axes import *
import numpy as np
from ...costs.work import direct_work
class RunCosts:
    def __init__(self, problem, configs): self.p,self.c=problem,configs
    def work(self):
        from ...costs.work import conv_work
        return conv_work(self.p,[{**c,"BLOCK_K":16,"num_stages":3} for c in self.c])
def run_tiles(problem):
    yield dict(BLOCK_M=64,BLOCK_N=32,MERGED=False,UNROLL=1,AHEAD=0,SLICES=1,num_warps=4,num_stages=1,steps=4)
