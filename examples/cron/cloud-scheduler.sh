#!/bin/sh
# A job of Google Cloud Scheduler that ticks a server anywhere, once a minute. The token lies in the job's definition.
set -eu
umask 077
flags=$(mktemp)
trap 'rm -f "$flags"' EXIT
printf -- '--headers: "Authorization=Bearer %s"\n' "$FUNCTIONS_TOKEN" > "$flags" # not as an argument: those are public
gcloud scheduler jobs create http hands-tick \
    --location="$GCP_REGION" \
    --schedule="* * * * *" \
    --uri="$FUNCTIONS_URL/poll_tick" \
    --http-method=POST \
    --flags-file="$flags" \
    --attempt-deadline=180s
