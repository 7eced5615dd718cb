#!/usr/bin/env bash
# Table 2, ResNets: five algorithms with and without InCo, clients by Dirichlet draws. The partition that was published: table2_official.sh
# bash multirun_scripts/table2.sh scale=mini|paper [setting=value ...]
source "$(dirname "$0")/common.sh"
sweeps table2 table2_resnet table2_resnet_moon -- "$@"
