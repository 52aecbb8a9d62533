"""Stub."""
class BandedCosts:
    def __init__(self, problem, configs): pass
    def work(self): raise NotImplementedError
def banded_tiles(problem):
    return iter(())
