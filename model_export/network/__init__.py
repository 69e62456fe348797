"""The network: one file per box of the figure. config -> backbone -> encoder -> decoder, with the
gate beside them."""
