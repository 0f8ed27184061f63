#!/bin/sh
# Six gates on bundled models, whose exit codes are compared with what they should be. From the repository's root:
#   docs/examples/gate/demo.sh .venv/bin/robust-eval
set -u
program=${1:-robust-eval}
settings=docs/examples/gate/robust-eval.toml
baseline=robust-eval-runs/demo-gate/baseline.json
wrong=0

expect() {
    code=$1 why=$2
    shift 2
    printf '\n== %s\n$ robust-eval %s\n\n' "$why" "$*"
    "$program" "$@"
    got=$?
    if [ "$got" -eq "$code" ]; then
        printf '\nexit code %s, as it should be\n' "$got"
    else
        printf '\nEXIT CODE %s, AND NOT %s\n' "$got" "$code"
        wrong=$((wrong + 1))
    fi
}

runs=robust-eval-runs/demo-gate
expect 0 'a model that was trained against the attack passes' \
    gate --config $settings --out $runs/passes --fresh
expect 1 'one that was not fails, and half of the images are enough to know' \
    gate --config $settings --model digits_standard --out $runs/fails --fresh
expect 3 'thirty images decide nothing, which stops the gate' \
    gate --config $settings --limit 30 --out $runs/few --fresh
expect 3 'nor do the twenty images of ImageNet that are at hand' \
    gate --config $settings --model efficientnet_lite0 --data imagenet --attack fgsm --eps 0.25/255 \
    --rule 'clean.accuracy >= 0.8' --rule 'fgsm.accuracy >= 0.3' --out $runs/imagenet --fresh
expect 0 'a whole run becomes the baseline' \
    --model digits_pgd_at --attack apgd --eps 0.1 --out $runs/baseline --fresh
expect 0 'and a small file that can be committed' \
    baseline write $runs/baseline --out $baseline --update
expect 0 'a model that is as good as the baseline passes' \
    gate --config $settings --baseline $baseline --rule 'apgd.accuracy no_worse_than baseline by 0.05' --out $runs/same --fresh
expect 1 'one that was trained against corruptions only is worse, and fails' \
    gate --config $settings --model digits_augmix --baseline $baseline --rule 'apgd.accuracy no_worse_than baseline by 0.05' \
    --out $runs/worse --fresh

printf '\n%s\n' "$([ $wrong -eq 0 ] && echo 'every exit code was as it should be' || echo "$wrong exit codes were not as they should be")"
exit $((wrong > 0))
