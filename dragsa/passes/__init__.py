"""How the drag loop runs a pass of the UNet: what is computed once, where, and compiled or not."""
