#!/bin/sh
# The DET curves and the table of docs/evaluation.md: four encoders of experiments/encoders, three seeds each, on real
# speech (15 minutes on 2 free cores). From the repository's root, in its environment:
#   sh docs/figures/make.sh [CORPUS]
set -eu
corpus=${1:-../shared/data}  # the folder that conf/data/real_speech.yaml lists

python -m spkexp.train experiments=encoders -m experiments/encoders/compute=conv1d,xvector,ecapa,resnet seed=0,1,2 \
    data.root="$corpus" tracking.group=figures
python -m spkexp.compare runs/sweeps/figures-* output=runs/figures
cp runs/figures/plots/det.png docs/figures/det.png
