#!/bin/sh
# The bundled model from scratch: 34 million tokens of its teacher's demonstrations.
# Goes on where it was stopped; another directory and --output keep the model that is there.
set -e
torchrun --standalone --nproc-per-node "$(nproc)" -m apr_agents.training.bundled \
    --directory runs/bundled --output runs/bundled/model
apr-agents eval --task arithmetic -n 100 --model local:runs/bundled/model --threads 0 --threads 8
