"""The cost of a training job before it is queued: memory of a rank, time and communication.

It is computed from the job's config and the model's sizes, without weights, GPU or data.
"""
