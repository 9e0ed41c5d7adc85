"""Checkpoints on disk, merged tensor by tensor: memory for a few tensors, whatever the model.

`plan.plan_fusion` finds the files (`checkpoint`), matches their tensors (`matching`, by
`adjustments` of names and by `vocabulary`), compares their configurations (`configuration`) and
lays out the output for a `plan.Recipe`. `fusing.fusing` carries out the plan: the first pass of
methods that weight by layer and the merge (`merging`) into a folder beside the output, which one
rename puts in place with the files `carried` along and a `card`.
"""
