"""The 2-D model that the tiny video presets begin with, small enough to ship.

`unet/` is a `UNet2DConditionModel` of 3.8 million parameters, trained on single frames by the
preset `tiny-image` and written by `longtake export`; `unet/training.json` says on what and for how
long. It draws what it was shown, a few films at 256 x 256 in the latents of the tiny VAE, from the
captions it was shown with, and nothing else: the tiny CLIP has random weights and knows no words.
"""
