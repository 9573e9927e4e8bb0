// Calls gRPC methods over one channel: `node client.cjs ADDRESS [CA [CERT KEY]]`. A line of standard
// input is a call, `METHOD FILE DEADLINE_MS CANCEL_MS` (0 for none), with the request in the file. What
// comes back is a line too, `CODE DETAILS`, in hexadecimal; the answer is written to FILE.answer.

const fs = require('fs');
const readline = require('readline');
const grpc = require('@grpc/grpc-js');

const [address, ...files] = process.argv.slice(2);
const [ca, key, cert] = [files[0], files[2], files[1]].map((file) => file && fs.readFileSync(file));
const client = new grpc.Client(
  address,
  ca ? grpc.credentials.createSsl(ca, key, cert) : grpc.credentials.createInsecure(),
  {
    'grpc.max_receive_message_length': -1,
    'grpc.max_send_message_length': -1,
    'grpc.keepalive_time_ms': 100,
    'grpc.keepalive_permit_without_calls': 1,
  },
);
const metadata = new grpc.Metadata();
metadata.set('a', 'b');
metadata.set('c-bin', Buffer.from([0, 1, 255]));

function call(line) {
  const [method, file, deadlineMs, cancelMs] = line.split(' ');
  const options = Number(deadlineMs) ? { deadline: Date.now() + Number(deadlineMs) } : {};
  const same = (bytes) => bytes;
  return new Promise((done) => {
    const request = fs.readFileSync(file);
    const made = client.makeUnaryRequest(method, same, same, request, metadata, options, (error, answer) => {
      if (!error) fs.writeFileSync(`${file}.answer`, answer);
      const details = Buffer.from(error ? error.details : '').toString('hex');
      done(`${error ? error.code : 0} ${details}`);
    });
    if (Number(cancelMs)) setTimeout(() => made.cancel(), Number(cancelMs));
  });
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(await call(line));
  }
  client.close();
})();
