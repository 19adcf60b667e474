"""AOT-SFT: pairs of a clean and a manipulated picture, made in stages that each let a picture go on or drop it with a
reason.

Source: AOT (arXiv 2602.22227), the construction of its supervised data. Its stages are known (extend the scene, check
it, propose distractors, check box and prompt, paint, probe with a base model); its models, prompts, thresholds and
counts are not, so all of these are ours.

- ``values``: what goes through the stages. ``extending``: a larger picture around the original. ``checks``: of extended
  pictures, boxes and prompts. ``proposals``: distractors. ``asking``: models, here or behind an endpoint.
  ``diffusers``: an inpainting pipeline.
- ``stages``: a batch of problems through all of them. ``folder``: a resumable folder of what came of it.
"""
