"""The network, one file per box of the figure: backbone -> encoder -> decoder, and the gate beside
them."""
