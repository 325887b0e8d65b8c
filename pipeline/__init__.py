"""Raw videos in, training-ready latent shards out.

Read in this order: `records` (the nouns), `stage` (the only loop), one stage (`extract`), `build`
(the chain of six). A recipe's sources become videos, scenes, clips, samples and shards; at every
step a record is either passed on or turned into a rejection with a reason, never lost. Results live
in a content-addressed `store`, so the command that builds is also the command that resumes.
"""
