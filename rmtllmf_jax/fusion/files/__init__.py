"""Checkpoints on disk, merged tensor by tensor: memory for a few tensors, whatever the model.

`plan.plan_fusion` finds the files (`checkpoint`), compares them and lays out the output for a
`plan.Recipe`; `fusing.fusing` carries the plan out: the first pass of methods that weigh by layer
and the merge (`merging`) into a folder beside the output, which one rename puts in its place with
configuration and `card`.
"""
