"""Checkpoints on disk, merged tensor by tensor: memory for a few tensors, whatever the model.

`plan.plan_fusion` finds the files (`checkpoint`), compares them (`matching`) and lays out the
output (`shards`) for a `recipe.Recipe`; `fusing.fusing` carries the plan out: the first pass of
rules that weigh by layer (`layer_gram`), the merge (`merging`, by `programs`) into a folder beside
the output (`part`), which one rename puts in its place with configuration (`carried`) and `card`.
"""
