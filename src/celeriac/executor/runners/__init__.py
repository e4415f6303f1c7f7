"""How calls overlap inside one executor: one file per way, `base` is the seam."""
