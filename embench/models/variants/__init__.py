"""Variants of EM: each is one way from a mixture to the next, on the engine of `em`.

| module | what its models change |
|---|---|
| `coordinates` | nothing: a mixture as one vector of free numbers, and back |
| `accelerated` | the length and direction of a step |
| `annealed` | how soft responsibilities are |
| `splitting` | which components share which samples |
"""
