"""What a build is made of: records, manifests, the store, the loop over a stage. Imports nothing
else of ours.
"""
