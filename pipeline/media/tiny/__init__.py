"""The encoders of the `tiny` preset, small enough to ship: a trained VAE and a random, fixed CLIP.

`vae/` is an `AutoencoderKL` (f8, 4 channels) trained by `pipeline.media.tiny.train_vae` on real
footage; `clip/` is an open_clip model with random weights made by `pipeline.media.tiny.make_clip`.
It tells one caption or picture from another and knows nothing about either: it is there so that the
whole path runs on a laptop, not to condition a model on meaning.
"""
