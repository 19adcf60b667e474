"""Vision-language models: from pixels and text to log-probabilities and back to pixels.

``processor`` turns a problem into token ids and fits pictures to the model, ``preprocess`` turns pixels into model
inputs with gradient, ``packing`` lays groups out so that a prompt is computed once, ``attention`` computes who sees
whom there and, with ``cache``, in decoding, ``head`` scores tokens without holding all logits, ``family`` and the
modules named after families say how each sees pictures, ``families`` reads checkpoints, and ``policy`` puts them
together.
"""
