#!/bin/sh
# P-GRPO on the bundled model: its own family, and chains as controls that should not be split.
# Arguments are handed on, such as --steps 300 or --divide-by-sigma.
set -e
export OMP_NUM_THREADS=1  # two processes, a core each
torchrun --standalone --nproc-per-node "$(nproc)" --no-python \
    apr-agents train grpo --model bundled --out runs/bundled_pgrpo \
    --task arithmetic:whole --task arithmetic:wide --task arithmetic:chain \
    --steps 100 --problems 8 --group 8 --rate 1e-5 --clip 0.5 "$@"
apr-agents eval --task arithmetic -n 100 --model bundled --model local:runs/bundled_pgrpo/model \
    --threads 0 --threads 8
