"""The world: bytes, codecs, models. Imports core alone."""
