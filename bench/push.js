// What bench/push.py measures of @parse/node-apn: the job as JSON on stdin, {sent, seconds} on stdout.
const fs = require("fs");

async function main() {
    const job = JSON.parse(fs.readFileSync(0, "utf8"));
    const apn = require(job.module);
    const address = new URL(job.address);
    const provider = new apn.Provider({
        token: { key: job.key, keyId: job.keyId, teamId: job.teamId },
        address: address.hostname,
        port: Number(address.port),
        ca: fs.readFileSync(job.ca),
        production: false,
    });
    const notification = new apn.Notification();
    notification.rawPayload = job.notification;
    notification.topic = "com.example";
    notification.pushType = "alert";
    const began = process.hrtime.bigint();
    const result = await provider.send(notification, job.tokens);
    const seconds = Number(process.hrtime.bigint() - began) / 1e9;
    console.log(JSON.stringify({ sent: result.sent.length, failed: result.failed.slice(0, 1), seconds }));
    provider.shutdown();
    process.exit(0);
}

main();
