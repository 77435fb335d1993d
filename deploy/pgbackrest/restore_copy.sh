# Restores a Postgres beside the one that runs, and returns when that copy answers.
# Run by deploy/backups.py on the Postgres' host, as the user postgres, with the variables of deploy/pgbackrest/env. Its
# arguments say until when, as pgbackrest's restore takes it.
if [ -e "$COPY" ]; then
    echo "There is a copy already, in $COPY: remove it first (docs/backups.md)." >&2
    exit 1
fi
mkdir -m 700 "$COPY"
pgbackrest --pg1-path="$COPY" "$@" restore

# A copy is a second primary that takes itself for the first one. It must not write to that one's archive, nor take the
# changes of a shard that moves away from its subscription; and nobody may read it before it is at that time.
"$POSTGRES_BIN/pg_ctl" start -D "$COPY" -l "$COPY.log" -o "--config-file='$POSTGRES_CONF' --hba-file='$POSTGRES_HBA' \
    --port=$COPY_PORT --cluster_name=copy_of_$PGBACKREST_STANZA --archive_mode=off --synchronous_standby_names='' \
    --max_logical_replication_workers=0 --hot_standby=off" >/dev/null

until "$POSTGRES_BIN/pg_isready" -q -p "$COPY_PORT"; do
    if ! "$POSTGRES_BIN/pg_ctl" status -D "$COPY" >/dev/null; then
        echo "The copy ended. Its log, $COPY.log:" >&2
        tail -n 8 "$COPY.log" >&2
        exit 1
    fi
    sleep 0.2
done
