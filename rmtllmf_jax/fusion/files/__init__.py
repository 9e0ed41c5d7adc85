"""Checkpoints on disk, merged tensor by tensor: memory for a few tensors, whatever the model.

`plan.plan_fusion` finds the files (`checkpoint`), brings their tensors together (`matching`, by
`adjustments` of names and by `vocabulary`), compares what they say (`configuration`) and lays out
the output for a `plan.Recipe`; `fusing.fusing` carries the plan out: the first pass of methods that
weigh by layer and the merge (`merging`) into a folder beside the output, which one rename puts in
its place with what is `carried` along and a `card`.
"""
