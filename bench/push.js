// What bench/push.py measures of @parse/node-apn: the job as JSON on stdin, {sent, seconds} on stdout.
const fs = require("fs");

async function main() {
    const job = JSON.parse(fs.readFileSync(0, "utf8"));
    const apn = require(job.module);
    const address = new URL(job.address);
    const notification = new apn.Notification();
    notification.rawPayload = job.notification;
    notification.topic = "com.example";
    notification.pushType = "alert";
    let sent = 0;
    const failed = [];
    const began = process.hrtime.bigint();
    // It loses what is on its way when a connection ends, as the double's do after 5000 requests.
    for (let at = 0; at < job.tokens.length; at += 4000) {
        const provider = new apn.Provider({
            token: { key: job.key, keyId: job.keyId, teamId: job.teamId },
            address: address.hostname,
            port: Number(address.port),
            ca: fs.readFileSync(job.ca),
            production: false,
        });
        const result = await provider.send(notification, job.tokens.slice(at, at + 4000));
        sent += result.sent.length;
        failed.push(...result.failed);
        provider.shutdown();
    }
    const seconds = Number(process.hrtime.bigint() - began) / 1e9;
    console.log(JSON.stringify({ sent, failed: failed.slice(0, 1), seconds }));
    process.exit(0);
}

main();
