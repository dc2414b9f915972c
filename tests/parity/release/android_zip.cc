// Says what Android's own zip loader reads in each file named: a line "OK", then for each entry its name in hex, its
// size and the CRC-32 of what was unpacked; or a line "NO" with the loader's error. Each answer ends with a line ".".
#include <ziparchive/zip_archive.h>
#include <zlib.h>

#include <cstdio>
#include <string>
#include <vector>

int main(int count, char** names) {
  for (int i = 1; i < count; ++i) {
    ZipArchiveHandle archive;
    int32_t error = OpenArchive(names[i], &archive);
    std::string said;
    void* cookie = nullptr;
    if (!error) error = StartIteration(archive, &cookie);
    if (!error) {
      ZipEntry entry;
      std::string name;
      while (!(error = Next(cookie, &entry, &name))) {
        std::vector<uint8_t> bytes(entry.uncompressed_length);
        error = ExtractToMemory(archive, &entry, bytes.data(), entry.uncompressed_length);
        if (error) break;
        char line[64];
        for (unsigned char letter : name) said += (snprintf(line, sizeof line, "%02x", letter), line);
        snprintf(line, sizeof line, " %zu %lu\n", bytes.size(), crc32(0, bytes.data(), bytes.size()));
        said += line;
      }
      EndIteration(cookie);
    }
    CloseArchive(archive);
    if (error == -1)  // kIterationEnd
      printf("OK\n%s.\n", said.c_str());
    else
      printf("NO %s\n.\n", ErrorCodeString(error));
  }
}
