"""SliceGPT: the states of a decoder are rotated onto their principal directions, and the last of these cut off."""
