#!/bin/sh
# SmolLM2-135M learns ThreadWeaver's tags by LoRA, on what the teachers of four tasks show.
# `make smollm2` fetches the model into models/smollm2; any other directory or hub id will do.
set -e
MODEL=${MODEL:-local:models/smollm2}
mkdir -p runs/smollm2
for task in arithmetic products chained aggregation:records=12,tokens=600; do
    apr-agents train data teach --task "$task" -n 300 --out "runs/smollm2/${task%%:*}.jsonl"
done
apr-agents train sft --model "$MODEL" --lora 32 --rate 1e-3 --epochs 2 --out runs/smollm2 \
    --data runs/smollm2/arithmetic.jsonl --data runs/smollm2/products.jsonl \
    --data runs/smollm2/chained.jsonl --data runs/smollm2/aggregation.jsonl \
    --batch-tokens 8192 --longest 2048 --held-out 32
apr-agents solve "Start with 7 and add 35. What is it now?" --model local:runs/smollm2/model
