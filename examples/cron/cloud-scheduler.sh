#!/bin/sh
# A job of Google Cloud Scheduler that ticks a server anywhere, once a minute. The token lies in the job's definition.
set -eu
gcloud scheduler jobs create http hands-tick \
    --location="$GCP_REGION" \
    --schedule="* * * * *" \
    --uri="$FUNCTIONS_URL/poll_tick" \
    --http-method=POST \
    --headers="Authorization=Bearer $FUNCTIONS_TOKEN" \
    --attempt-deadline=180s
