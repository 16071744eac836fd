#!/bin/sh
# The bundled model from scratch: demonstrations of its teachers, then P-GRPO.
# Goes on where it was stopped; another directory and --output keep the model that is there.
set -e
torchrun --standalone --nproc-per-node "$(nproc)" -m apr_agents.training.bundled \
    --directory runs/bundled --output runs/bundled/model
python benchmarks/bundled_model.py -n 100 --model local:runs/bundled/model
"$(dirname "$0")/bundled_pgrpo.sh" --model local:runs/bundled/model
