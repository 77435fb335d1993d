#!/bin/sh
# A round of Munin's master, as Debian's cron has it each 5 minutes; and what PagerDuty has not been told yet.
set -u
cd "{{ data }}"
mkdir -p db html log run
munin-cron --config "{{ conf }}"
{{ pagerduty }} flush
