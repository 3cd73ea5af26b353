"""A user's script whose rank 1 reads one row less than the others."""

from programs.behaviour import X, Y, fit, network

import ddp_gd

ddp_gd.init()
rows = 13 - (ddp_gd.rank() == 1)
fit(network(), X[:rows], Y[:rows])
print("trained")
