#!/bin/sh
# P-GRPO on the bundled model: problems that get shorter when they are split, and controls that
# do not. Arguments are handed on, such as --steps 300 or --divide-by-sigma.
set -e
export OMP_NUM_THREADS=1  # a process for each core
torchrun --standalone --nproc-per-node "$(nproc)" --no-python \
    apr-agents train grpo --model bundled --out runs/bundled_pgrpo \
    --task arithmetic --task arithmetic:wide --task arithmetic:chain --task arithmetic:tiny \
    --task aggregation:records=28,tokens=0 --task products:factors=2,digits=3 \
    --steps 60 --problems 12 --group 12 --rate 5e-5 --clip 0.5 "$@"
python benchmarks/bundled_model.py -n 100 --model local:runs/bundled_pgrpo/model
