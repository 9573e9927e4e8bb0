// Calls gRPC methods over one channel: `client ADDRESS [CA [CERT KEY]]`. A line of standard input is a
// call, `METHOD FILE DEADLINE_MS CANCEL_MS` (0 for none), with the request in the file. What comes back is
// a line too, `CODE DETAILS`, in hexadecimal; the answer is written to FILE.answer.

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace {

std::string Read(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

void Write(const std::string& file, const grpc::ByteBuffer& content) {
  std::vector<grpc::Slice> slices;
  std::ofstream stream(file, std::ios::binary);
  if (!content.Dump(&slices).ok()) return;
  for (const grpc::Slice& slice : slices) {
    stream.write(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
}

std::string Hex(const std::string& text) {
  static const char kDigits[] = "0123456789abcdef";
  std::string found;
  for (unsigned char byte : text) {
    found += kDigits[byte >> 4];
    found += kDigits[byte & 15];
  }
  return found;
}

std::chrono::system_clock::time_point In(long ms) {
  return std::chrono::system_clock::now() + std::chrono::milliseconds(ms);
}

}  // namespace

int main(int argc, char** argv) {
  auto credentials = grpc::InsecureChannelCredentials();
  if (argc > 2) {
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = Read(argv[2]);
    if (argc > 4) {
      options.pem_cert_chain = Read(argv[3]);
      options.pem_private_key = Read(argv[4]);
    }
    credentials = grpc::SslCredentials(options);
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 100);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  grpc::GenericStub stub(grpc::CreateCustomChannel(argv[1], credentials, arguments));
  grpc::CompletionQueue queue;
  std::string method, file;
  long deadline_ms, cancel_ms;
  while (std::cin >> method >> file >> deadline_ms >> cancel_ms) {
    grpc::ClientContext context;
    context.AddMetadata("a", "b");
    context.AddMetadata("c-bin", std::string("\0\1\xff", 3));
    if (deadline_ms) context.set_deadline(In(deadline_ms));
    grpc::Slice slice(Read(file));
    grpc::ByteBuffer request(&slice, 1), answer;
    grpc::Status status;
    auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
    call->StartCall();
    call->Finish(&answer, &status, nullptr);
    void* tag;
    bool ok;
    auto until = cancel_ms ? In(cancel_ms) : std::chrono::system_clock::time_point::max();
    if (queue.AsyncNext(&tag, &ok, until) == grpc::CompletionQueue::TIMEOUT) {
      context.TryCancel();
      queue.Next(&tag, &ok);
    }
    if (status.ok()) Write(file + ".answer", answer);
    std::cout << status.error_code() << " " << Hex(status.error_message()) << std::endl;
  }
}
