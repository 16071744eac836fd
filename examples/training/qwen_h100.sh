#!/bin/sh
# A larger model on one H100: demonstrations, then P-GRPO. Not run by the authors of this package.
set -e
MODEL=${MODEL:-local:Qwen/Qwen3-4B-Base}
mkdir -p runs/qwen
for task in products aggregation:records=40,tokens=3000 chained countdown; do
    apr-agents train data teach --task "$task" -n 2000 --out "runs/qwen/${task%%:*}.jsonl"
done
apr-agents train sft --model "$MODEL" --lora 64 --rate 2e-4 --out runs/qwen/sft \
    --data runs/qwen/products.jsonl --data runs/qwen/aggregation.jsonl \
    --data runs/qwen/chained.jsonl --data runs/qwen/countdown.jsonl \
    --batch-tokens 65536
apr-agents train grpo --model local:runs/qwen/sft/model --lora 64 --rate 1e-5 --out runs/qwen/grpo \
    --task products --task aggregation:records=40,tokens=3000 --task chained --task countdown \
    --steps 200 --problems 32 --group 8 --max-tokens 4096 --kl 0.001
